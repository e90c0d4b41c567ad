DATA = {}
make = draw_recipe = None
