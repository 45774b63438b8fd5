"""The parts of `shadowcat_stores.keyvalue`."""
