//! The node agent: runs pods as processes in network namespaces.
