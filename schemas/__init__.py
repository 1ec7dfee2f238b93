"""What crosses a process boundary: records and their Avro schemas, topics, codes, headers."""
