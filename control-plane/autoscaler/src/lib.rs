//! Windows, decider, scaler and the stat server of the Knative pod autoscaler.
