"""Samples to batches: which set is meant, its files, packed or built in, their order, and the way to the device.

open        the one door: which samples a configuration means
sources     where samples come from: files or built-in materials; `packed` and `rendered` have one more each
files       pictures in folders: their layout, headers, contents
packed      sets in few large files
builtin     procedural materials, kept in a cache
rendered    materials whose views are rendered on the device: scenes, changes to materials
split       training and validation
order       the cursor, epochs, batches, micro-batches
keyed       random numbers by key
augment     turns and mirrors of samples
alignment   cameras that go along with views
cameras     `cameras.json`
windows     parts of pictures, of samples that ranks share
load        samples to a micro-batch on the host (`batch`)
loader      micro-batches in the cursor's order, read ahead by `workers`
device      a micro-batch to the floats that networks see
sides       a word to whoever resizes much
importer    other people's libraries to a set of materials
register    cameras of renders, found by their maps
photos      cameras of photos, found by each other
"""
