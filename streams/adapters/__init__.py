"""The ports made real, and public in-memory fakes of each."""
