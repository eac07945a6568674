"""The first minute: support messages written for canwait, and the job that sorts them."""
