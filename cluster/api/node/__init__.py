"""The routes that nodes use among themselves, below `/cluster/node/`; nothing here is for clients.

They are not in the OpenAPI document, have no pages, and may change between versions: `PROTOCOL` in `cluster.transport`
says which nodes understand each other. docs/access.md tells who may use them.
"""
