"""Real MCP servers and real MCP clients, each pair tested twice: direct, and through the proxy.

`conftest.py` starts the servers and gives the two routes; `_client.py` is the Python SDK's client, `_node.py`
the TypeScript SDK's. Every wait has a deadline and ends on an event; nothing waits for time to pass.
"""
