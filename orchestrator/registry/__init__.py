"""Every run in one database: SQLite by default, PostgreSQL by URL.

Run directories stay the truth: what the registry has can be filled in again from them.
"""
