"""The conformance kit: prove a backend, or learn exactly how it breaks the contract."""
