"""Traces: what became of one request on its way, as OpenTelemetry's spans."""
