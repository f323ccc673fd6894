//! The xDS discovery protocol: a pure state machine for delta and state-of-the-world streams, and its tonic binding.
