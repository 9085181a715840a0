"""What a run and an audit write down: schemas, their JSON, names of files and versions."""
