"""What the server that test processes are forked from does once, so that none of them has to."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("bert")  # compiles a thousand patterns, at the first model that is read
