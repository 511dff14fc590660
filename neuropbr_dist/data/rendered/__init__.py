"""Samples of which only the maps are stored: their views are rendered anew for each one, on the device.

materials    where the maps are: files, a packed set, built-in ones
source       the entries, (material, repeat), and their maps
draws        what is random of a sample: its scene, and how its material is changed; keyed, on the host
changes      changes of a material: as numbers on the host, and done to its maps on the device
renderer     the device's half: change, then render
"""
