"""The meter: counts the usage of accepted lines once, and sends it to where it is billed."""
