"""The database inside a Python program: storage engines, index, query processor, over a node's own services.

    from vectors.library import Index, QueryProcessor, StorageEngineInMemory, VectorDTO

    with StorageEngineInMemory() as storage:
        processor = QueryProcessor(storage_engine=storage, index=Index())
        processor.insert(VectorDTO([0.1, 0.9], {"color": "red"}))
        processor.find_similar([0.1, 0.8], top_k=3)

Nothing is started: no server, no broker. In a program without Django the data lives in a private temporary directory
that is removed at exit; in a configured one it lives in that project's database.
"""

from vectors.library.processor import Index, QueryProcessor, SimilarVectors
from vectors.library.storage import StorageEngineInMemory
from vectors.library.vectors import Vector, VectorDTO

__all__ = ["Index", "QueryProcessor", "SimilarVectors", "StorageEngineInMemory", "Vector", "VectorDTO"]
