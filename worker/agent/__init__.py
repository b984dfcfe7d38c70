"""The worker process of one host: reconciles its attempts, takes part in the scheduling pass, watches devices and leases."""
