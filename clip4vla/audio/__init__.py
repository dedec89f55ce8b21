"""From waveforms to the log-mel tiles that the audio tower reads as images."""
