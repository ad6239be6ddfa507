"""The front door: frames and authorizes every request anew, and passes bodies and streams through."""
