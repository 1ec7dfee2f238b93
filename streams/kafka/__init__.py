"""Our Faust base: settings of the app, transport, ordered acks, readers, topic admin."""
