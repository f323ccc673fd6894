//! Our wire messages (autoscaler stats) as prost types.
