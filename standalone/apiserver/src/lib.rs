//! A table-driven Kubernetes API over the store, as a tower service and an HTTPS listener.
