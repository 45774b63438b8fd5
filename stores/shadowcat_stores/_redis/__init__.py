"""What `RedisStore` is made of: its way to the server, the scripts that run there, and the verbs on top."""
