"""The one-machine farm: PostgreSQL and Valkey from wheels, and everything else, in one folder."""
