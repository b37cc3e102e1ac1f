"""Programs that torch.export.save wrote: read, and imported with TVM's exported-program front end."""
