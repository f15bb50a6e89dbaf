"""Networks, their losses and decoders; nothing here knows a microscope."""
