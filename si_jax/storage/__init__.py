"""Files that are written whole or not at all, and read with suspicion.

`files` replaces small files in one step and reads JSON, `npz` reads archives of arrays that may come from
anywhere, `manifest` holds the digests of a folder, and `trees` names the arrays of a tree by their paths.
Nothing here knows what the files mean, and nothing here imports another folder of the package but `errors`.
"""
