"""Who may use the gateway: tokens, client certificates, TLS, and where it may listen."""
