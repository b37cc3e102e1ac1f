"""A fabric at a glance: an hour of a broker's status, and the page that shows it."""
