"""Facts: what the system, files, ports and a broker say. Nothing is decided here."""
