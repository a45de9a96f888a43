/** What a model may ask of this page. */

/** @import { ClientTool } from "../chatserver.js" */

/** @type {Record<string, ClientTool>} */
export const OWN_TOOLS = {
  screen_size: {
    description: "The size of the user's screen and window, in CSS pixels.",
    parameters: { type: "object", properties: {}, additionalProperties: false },
    run: () => ({
      screen: { width: screen.width, height: screen.height },
      window: { width: innerWidth, height: innerHeight },
      pixel_ratio: devicePixelRatio,
    }),
  },
};
