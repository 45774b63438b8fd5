"""What `SQLiteStore` is made of: its file and tables, what it reads and writes, and the threads that do."""
