//! Logging, metrics and the admin server of every process.
