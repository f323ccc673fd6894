//! The Serving controllers: service, configuration, revision, route, serverlessservice, labeler, metric.
