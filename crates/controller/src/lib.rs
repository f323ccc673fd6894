//! What every Kubernetes controller here is made of: shared reflectors, work queue, events, config watch, leases.
