//! KIngress, Services and endpoints in, Envoy resources out: what Kourier does.
