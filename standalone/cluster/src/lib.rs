//! The built-in Kubernetes controllers the one-machine mode needs: workloads, endpoints, garbage collection, DNS, service addresses.
