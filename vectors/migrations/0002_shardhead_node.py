"""Which node a shard copy belongs to: the one that runs this migration, since it has the segments."""

from django.db import migrations, models

import vectors.models


class Migration(migrations.Migration):
    dependencies = [("vectors", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="shardhead",
            name="node",
            field=models.CharField(
                default=vectors.models._this_node,
                editable=False,
                help_text="Id of the node whose data dir has the segments.",
                max_length=32,
            ),
        ),
    ]
