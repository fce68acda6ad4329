"""One night on one machine: a real S3 server and generated lesions."""
