"""`backhaul up`: a broker, the topics and every role on one machine, kept alive."""
