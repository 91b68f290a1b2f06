"""The networks: nothing here knows about files of data, DVC or datasets."""
