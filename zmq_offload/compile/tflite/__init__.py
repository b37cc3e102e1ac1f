"""TFLite files: read, and imported with TVM's TFLite front end."""
