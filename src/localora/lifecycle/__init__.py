"""What happens to an adapter in time: calibration, re-partition, resume, trainers. Not the maths of placing."""
