//! Types of the Serving, autoscaling and networking APIs, with their defaulting and validation.
