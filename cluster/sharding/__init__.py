"""The shards of a coordinator: who owns which slots, as data and as decisions. Pure."""
