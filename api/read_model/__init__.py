"""What the gateway answers reads from: rows in SQLite, fed by the topics, rebuildable from them."""
