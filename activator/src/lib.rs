//! Holds requests for revisions without ready pods, wakes them, and passes the requests on.
