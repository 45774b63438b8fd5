"""The parts by themselves, without sockets."""
