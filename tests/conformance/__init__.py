"""What the protocol demands of a proxy, clause by clause (`clauses.toml`); and `make conformance`: the
official suite, the SDKs' examples and clients, directly and through Shadowcat, compared check by check."""
