"""The commit log Protocol and the embedded one-node log."""
