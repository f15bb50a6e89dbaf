"""Several emitters at once: matching pursuit, and maximum likelihood of all emitters whose images overlap."""
